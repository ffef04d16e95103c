"""Model families from papers, one folder each, and what they share."""
