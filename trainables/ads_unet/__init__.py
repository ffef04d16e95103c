"""ADS_UNet: sub-UNets of growing depth, trained one after the other on one encoder, which vote."""
