// The fiber scheduler behind emu.h: stacks, barriers and warp meetings, shared memory, and the loop over blocks.
#include "emu.h"
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <sys/mman.h>
#include <utility>
#include <vector>

// The assembly switch saves the six registers that a call must preserve; swapcontext adds a system call.
#if !defined(__x86_64__) && !defined(LC_EMU_UCONTEXT)
#define LC_EMU_UCONTEXT
#endif
#ifdef LC_EMU_UCONTEXT
#include <ucontext.h>
#else
/// Saves the stack pointer to *save_sp, goes to the stack at load_sp.
extern "C" __attribute__((naked, noipa)) void lc_emu_switch(void** /*save_sp: rdi*/, void* /*load_sp: rsi*/) {
  __asm__("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
          "mov %rsp, (%rdi)\n"
          "mov %rsi, %rsp\n"
          "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
          "ret");
}
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else // the same calls, doing nothing
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

namespace lc::emu {

Thread* current;
dim3 grid_dim, block_dim;

namespace {

constexpr size_t kMaxThreads = 1024; // of one block
constexpr size_t kPage = 4096;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 * 1024; // ASan widens the frames
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr size_t kStaticShared = 48 * 1024;
constexpr size_t kArena = 320 * 1024; // 227 KiB of shared memory and the gaps around its arrays
constexpr size_t kGap = 128;

/// A stack and where to go on with it: the launcher's, or that of a fiber.
struct Flow {
#ifdef LC_EMU_UCONTEXT
  ucontext_t context;
#else
  void* sp;
#endif
  const void* stack = nullptr; // ASan wants to know the bounds of the stack it goes to
  size_t stack_bytes = 0;
  void* fake_stack = nullptr; // ASan's own, while the flow rests
};

/// A meeting of lanes of one warp: free, then gathering (arrived != 0), then read (unread != 0), then free again.
struct Meeting {
  uint32_t mask = 0, arrived = 0, unread = 0, generation = 0;
  const char* kind = "";
  Site site;
  Deposits deposits;
};

struct Warp {
  uint32_t lanes, exited;       // lanes that the block has, and those that have ended
  std::deque<Meeting> meetings; // not a vector: threads hold references while it grows
};

struct Barrier {
  uint32_t arrived = 0, exited = 0, generation = 0;
  int votes[2] = {0, 0}; // by parity of the generation: a thread may read the old count while another votes anew
  const char* kind = "";
  Site site;
};

struct Fiber : Thread {
  Flow flow;
  Warp* warp;
  bool done;
  const uint32_t* watched; // null, or the generation whose change this fiber waits for
  uint32_t seen;
  const char* kind; // where it waits
  Site site;

  bool can_run() const { return !done && (!watched || *watched != seen); }
};

struct StaticArray {
  size_t offset, bytes;
  uint64_t block; // the last block that has declared it
};

/// All that a launch needs. Stacks, fibers and the arena outlive it, to be used again.
struct Machine {
  Options options;
  uint64_t launches = 0;

  bool running = false;
  Site launched_at;
  const std::function<void()>* body;
  std::exception_ptr error; // what a fiber threw
  Flow launcher;
  char* stacks = nullptr;
  std::vector<Fiber> fibers{kMaxThreads};
  std::vector<Warp> warps{kMaxThreads / 32};
  size_t threads; // of a block
  Barrier barrier;

  alignas(kGap) char arena[kArena];
  size_t dynamic_shared, static_shared, arena_end;
  std::map<const void*, StaticArray> static_arrays; // of this launch, by key
  uint64_t block = 0;                               // counts blocks, over all launches
};

Machine& machine() {
  static Machine& m = *new Machine; // never destroyed: a launch may come from a static destructor
  return m;
}

// ---- Reports ------------------------------------------------------------------------------------------------------

std::ostream& operator<<(std::ostream& s, const Site& site) { return s << site.file_name() << ":" << site.line(); }
struct Mask {
  uint32_t lanes;
};
std::ostream& operator<<(std::ostream& s, Mask m) { return s << "0x" << std::hex << m.lanes << std::dec; }
std::ostream& operator<<(std::ostream& s, const uint3& v) { return s << "(" << v.x << "," << v.y << "," << v.z << ")"; }

template <class... A> [[noreturn]] void fail(const A&... parts) {
  std::ostringstream s;
  s << "CUDA emulation: ";
  (s << ... << parts);
  if (current) s << " [thread " << current->thread_idx << " of block " << current->block_idx << "]";
  s << " [launched at " << machine().launched_at << "]";
  throw Error(s.str());
}

[[noreturn]] void fail_deadlock() {
  Machine& m = machine();
  std::map<std::string, std::pair<int, uint3>> waiting; // place -> how many threads, the first of them
  size_t ended = 0;
  for (size_t t = 0; t < m.threads; ++t) {
    const Fiber& f = m.fibers[t];
    if (f.done) {
      ++ended;
      continue;
    }
    std::ostringstream place;
    place << f.kind << " " << f.site;
    ++waiting.try_emplace(place.str(), 0, f.thread_idx).first->second.first;
  }
  std::ostringstream s;
  for (const auto& [place, who] : waiting)
    s << who.first << " threads wait at " << place << " (the first is " << who.second << "); ";
  fail("deadlock in block ", m.fibers[0].block_idx, ": ", s.str(), ended, " threads have ended");
}

// ---- Switching stacks ---------------------------------------------------------------------------------------------

/// Rests `from` and goes on with `to`; returns when something goes on with `from`, which is never if it has ended.
/// The one place where fibers change: another tool that follows stacks needs its notices here and in fiber_entry.
void go(Flow& from, Flow& to, bool from_has_ended = false) {
  __sanitizer_start_switch_fiber(from_has_ended ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#ifdef LC_EMU_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  lc_emu_switch(&from.sp, to.sp);
#endif
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void end_thread();

// A function of its own, so that it has returned, and its frame is no longer poisoned by ASan, when the fiber ends.
// The catch block is left before the switch: the C++ runtime keeps one list of caught exceptions for all fibers.
__attribute__((noinline)) void run_thread() {
  try {
    (*machine().body)();
    end_thread();
  } catch (...) {
    machine().error = std::current_exception();
  }
}

__attribute__((no_sanitize("address", "undefined"))) void fiber_entry() {
  Machine& m = machine();
  __sanitizer_finish_switch_fiber(nullptr, &m.launcher.stack, &m.launcher.stack_bytes);
  run_thread();
  Fiber& me = static_cast<Fiber&>(*current);
  me.done = true;
  go(me.flow, m.launcher, true);
  __builtin_unreachable();
}

void prepare(Flow& flow, char* stack) {
  flow.stack = stack;
  flow.stack_bytes = kStack;
  flow.fake_stack = nullptr;
#ifdef LC_EMU_UCONTEXT
  getcontext(&flow.context);
  flow.context.uc_stack.ss_sp = stack;
  flow.context.uc_stack.ss_size = kStack;
  flow.context.uc_link = nullptr;
  makecontext(&flow.context, fiber_entry, 0);
#else
  // What lc_emu_switch pops: six registers and fiber_entry. The null above is its return address, where unwinding ends.
  void** top = reinterpret_cast<void**>(stack + kStack);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(fiber_entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  flow.sp = top;
#endif
}

/// Gives way until `generation` changes.
void wait_for_change(const uint32_t& generation, const char* kind, Site site) {
  Fiber& me = static_cast<Fiber&>(*current);
  me.watched = &generation;
  me.seen = generation;
  me.kind = kind;
  me.site = site;
  go(me.flow, machine().launcher);
  me.watched = nullptr;
}

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

/// The running thread has left the kernel.
void end_thread() {
  Fiber& me = static_cast<Fiber&>(*current);
  const Barrier& b = machine().barrier;
  if (b.arrived > 0) fail("a thread ends while ", b.arrived, " threads of its block wait at ", b.kind, " ", b.site);
  for (const Meeting& meeting : me.warp->meetings)
    if (meeting.arrived && (meeting.mask >> me.lane & 1))
      fail("lane ", me.lane, " ends while lanes ", Mask{meeting.arrived}, " wait for it at ", meeting.kind, " ",
           meeting.site, " with mask ", Mask{meeting.mask});
  ++machine().barrier.exited;
  me.warp->exited |= 1u << me.lane;
}

} // namespace

// ---- Barriers and warp meetings -----------------------------------------------------------------------------------

int block_barrier(bool predicate, const char* kind, Site site) {
  Machine& m = machine();
  Barrier& b = m.barrier;
  if (b.exited > 0) fail(kind, " ", site, " is reached after ", b.exited, " threads of the block have ended");
  if (b.arrived == 0) {
    b.kind = kind;
    b.site = site;
    b.votes[b.generation & 1] = 0;
  } else if (!same(b.site, site)) {
    fail("divergent barrier: a thread arrives at ", kind, " ", site, " while ", b.arrived, " threads wait at ", b.kind,
         " ", b.site);
  }
  int& votes = b.votes[b.generation & 1];
  votes += predicate;
  if (++b.arrived < m.threads) {
    wait_for_change(b.generation, kind, site);
  } else {
    b.arrived = 0;
    ++b.generation;
  }
  return votes;
}

const Deposits& warp_meeting(uint32_t mask, const void* value, size_t bytes, const char* kind, Site site) {
  Fiber& me = static_cast<Fiber&>(*current);
  Warp& warp = *me.warp;
  const uint32_t expected = mask & warp.lanes; // a mask may name lanes that a short last warp does not have
  if ((mask >> me.lane & 1) == 0) fail(kind, " ", site, ": lane ", me.lane, " is not in its own mask ", Mask{mask});
  if (expected & warp.exited)
    fail(kind, " ", site, ": mask ", Mask{mask}, " names lanes ", Mask{expected & warp.exited}, " that have ended");
  if (bytes > Deposits::kBytes) fail(kind, " ", site, ": ", bytes, " bytes are too many");

  // Meetings are told apart by their masks: disjoint groups of lanes meet independently.
  Meeting *meeting = nullptr, *free = nullptr;
  for (Meeting& other : warp.meetings) {
    if (other.arrived && other.mask == mask) meeting = &other;
    if (!other.arrived && !other.unread) free = &other;
  }
  if (!meeting) {
    meeting = free ? free : &warp.meetings.emplace_back();
    meeting->mask = mask;
    meeting->kind = kind;
    meeting->site = site;
  } else if (!same(meeting->site, site) || std::strcmp(meeting->kind, kind) != 0) {
    fail("divergent warp: lane ", me.lane, " calls ", kind, " ", site, " while lanes ", Mask{meeting->arrived},
         " wait at ", meeting->kind, " ", meeting->site);
  }

  std::memcpy(meeting->deposits.bytes[me.lane], value, bytes);
  meeting->arrived |= 1u << me.lane;
  if (meeting->arrived != expected) {
    wait_for_change(meeting->generation, kind, site);
  } else {
    meeting->deposits.present = expected;
    meeting->unread = static_cast<uint32_t>(std::popcount(expected));
    meeting->arrived = 0;
    ++meeting->generation;
  }
  --meeting->unread; // the caller reads before it gives way again, so even the last one reads before the next use
  return meeting->deposits;
}

void fail_shuffle_source(uint32_t mask, int source, const char* kind, Site site) {
  fail(kind, " ", site, ": lane ", current->lane, " reads lane ", source, ", which does not take part (mask ",
       Mask{mask}, ")");
}

// ---- Shared memory ------------------------------------------------------------------------------------------------
// One arena serves all blocks, as only one runs at a time. Under ASan all of it is poisoned but the arrays in use:
//   gap | dynamic shared memory | gap | first static array | gap | second static array | gap ...

namespace {

void* open_array(size_t offset, size_t bytes) {
  Machine& m = machine();
  char* array = m.arena + offset;
  ASAN_UNPOISON_MEMORY_REGION(array, bytes);
  std::memset(array, m.options.poison, bytes);
  return array;
}

/// Takes the next place of the arena.
size_t place_array(size_t bytes) {
  Machine& m = machine();
  const size_t offset = m.arena_end;
  m.arena_end = (offset + bytes + 2 * kGap - 1) / kGap * kGap;
  if (m.arena_end > kArena) fail("too many arrays in shared memory");
  return offset;
}

} // namespace

void* static_shared(const void* key, size_t bytes) {
  Machine& m = machine();
  const auto [it, is_new] = m.static_arrays.try_emplace(key);
  StaticArray& array = it->second;
  if (is_new) {
    m.static_shared += bytes;
    const size_t all = m.static_shared + m.dynamic_shared;
    if (m.static_shared > kStaticShared) fail(m.static_shared, " bytes of static shared memory: more than 48 KiB");
    if (all > m.options.max_shared) fail(all, " bytes of shared memory: more than ", m.options.max_shared);
    if (all > kStaticShared && m.dynamic_shared <= kStaticShared)
      fail(all, " bytes of shared memory: more than 48 KiB, of which the dynamic ones alone are not");
    array = {place_array(bytes), bytes, 0};
  }
  if (array.block != m.block) {
    array.block = m.block;
    open_array(array.offset, bytes);
  }
  return m.arena + array.offset;
}

void* dynamic_shared() { return machine().arena + kGap; }

// ---- The launch ---------------------------------------------------------------------------------------------------

namespace {

uint3 position(size_t index, dim3 extent) {
  return {static_cast<unsigned>(index % extent.x), static_cast<unsigned>(index / extent.x % extent.y),
          static_cast<unsigned>(index / extent.x / extent.y)};
}

size_t volume(dim3 extent) { return size_t{extent.x} * extent.y * extent.z; }

/// The indices 0 to n - 1 in the order that the seed asks for.
std::vector<size_t> ordered(size_t n, std::mt19937_64& rng) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  if (machine().options.seed == 1) std::reverse(order.begin(), order.end());
  if (machine().options.seed > 1) std::shuffle(order.begin(), order.end(), rng);
  return order;
}

void run_block(uint3 block_idx, std::mt19937_64& rng) {
  Machine& m = machine();
  ++m.block;
  m.barrier = {};
  ASAN_POISON_MEMORY_REGION(m.arena, kArena);
  open_array(kGap, m.dynamic_shared);
  for (size_t w = 0; w * 32 < m.threads; ++w) {
    const size_t lanes = std::min<size_t>(32, m.threads - w * 32);
    m.warps[w].lanes = lanes == 32 ? ~0u : (1u << lanes) - 1;
    m.warps[w].exited = 0;
    for (Meeting& meeting : m.warps[w].meetings) meeting.arrived = meeting.unread = 0; // of an abandoned launch
  }
  for (size_t t = 0; t < m.threads; ++t) {
    Fiber& f = m.fibers[t];
    f.thread_idx = position(t, block_dim);
    f.block_idx = block_idx;
    f.lane = t % 32;
    f.warp = &m.warps[t / 32];
    f.done = false;
    f.watched = nullptr;
    prepare(f.flow, m.stacks + t * (kStack + kPage) + kPage);
  }

  std::vector<size_t> order = ordered(m.threads, rng);
  for (size_t left = m.threads; left > 0;) {
    bool progress = false;
    for (size_t t : order) {
      Fiber& f = m.fibers[t];
      if (!f.can_run()) continue;
      progress = true;
      current = &f;
      go(m.launcher, f.flow);
      current = nullptr;
      if (m.error) std::rethrow_exception(std::exchange(m.error, nullptr));
      left -= f.done;
    }
    if (!progress) fail_deadlock();
    if (m.options.seed > 1) std::shuffle(order.begin(), order.end(), rng);
  }
}

/// Address space for the stacks, each above a page that faults when the stack overflows.
char* map_stacks() {
  const size_t each = kStack + kPage;
  void* p =
      mmap(nullptr, kMaxThreads * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("no address space for ", kMaxThreads, " stacks");
  char* stacks = static_cast<char*>(p);
  for (size_t t = 0; t < kMaxThreads; ++t) mprotect(stacks + t * each, kPage, PROT_NONE);
  return stacks;
}

/// Ends a launch, also one that throws.
struct LaunchEnd {
  ~LaunchEnd() {
    Machine& m = machine();
    m.running = false;
    ASAN_UNPOISON_MEMORY_REGION(m.arena, kArena);
    // Abandoned fibers leave poisoned frames, and their stacks will be used again.
    for (size_t t = 0; t < m.threads; ++t)
      if (!m.fibers[t].done) ASAN_UNPOISON_MEMORY_REGION(m.fibers[t].flow.stack, kStack);
  }
};

} // namespace

Options& options() { return machine().options; }
uint64_t launch_count() { return machine().launches; }

void run(dim3 grid, dim3 block, size_t dynamic_shared, Site site, const std::function<void()>& body) {
  static std::recursive_mutex turn; // recursive, so that a launch from inside a kernel is reported below
  const std::lock_guard lock(turn);
  Machine& m = machine();
  if (m.running) fail("a kernel launches a kernel at ", site);
  m.launched_at = site;
  ++m.launches;
  const size_t blocks = volume(grid);
  m.threads = volume(block);
  if (blocks == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    fail("impossible grid ", uint3{grid.x, grid.y, grid.z});
  if (m.threads == 0 || m.threads > kMaxThreads || block.z > 64)
    fail("impossible block ", uint3{block.x, block.y, block.z});
  if (dynamic_shared > m.options.max_shared)
    fail(dynamic_shared, " bytes of dynamic shared memory: more than ", m.options.max_shared);

  if (!m.stacks) m.stacks = map_stacks();
  grid_dim = grid;
  block_dim = block;
  m.body = &body;
  m.dynamic_shared = dynamic_shared;
  m.static_shared = 0;
  m.static_arrays.clear();
  m.arena_end = kGap;
  place_array(dynamic_shared);
  std::mt19937_64 rng(m.options.seed);
  const std::vector<size_t> order = ordered(blocks, rng);
  m.running = true;
  const LaunchEnd at_end;
  for (size_t b : order) run_block(position(b, grid), rng);
}

} // namespace lc::emu
