"""Events that arrive as files or in Kafka, by Spark Structured Streaming into the same tick."""
