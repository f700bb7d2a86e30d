"""A batch becomes a report: fetch, read, archive. HTTP and HTML; no database, no broker."""
