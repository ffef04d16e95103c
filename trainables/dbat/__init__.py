"""DBAT: materials from patches of four sizes, weighed by dynamic backward attention."""
