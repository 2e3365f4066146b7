"""SQLite connections, transactions and the schema."""
