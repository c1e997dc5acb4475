"""RLBench in an interpreter of its own: client, server and the list of its tasks."""
