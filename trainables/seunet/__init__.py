"""Scale-equivariant UNet: branches of Gaussian-derivative filters share coefficients and differ in trainable scales."""
