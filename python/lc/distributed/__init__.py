"""The LC algorithm on several processes: replicas share out the C steps, shards exchange what these need."""
