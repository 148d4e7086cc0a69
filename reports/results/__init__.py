"""Result files: the record schema, reading, migration, aggregation and statistics."""
