"""Weight Fixing Networks: a whole network's weights share one small codebook of sums of powers of two."""
