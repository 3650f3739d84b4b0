"""Records, claims, tables and figures."""
