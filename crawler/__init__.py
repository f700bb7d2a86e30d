"""A polite distributed crawler."""
