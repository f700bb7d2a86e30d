"""The ledger: which URLs a job knows, in which state, and which are leased next. PostgreSQL or SQLite; no broker."""
