"""The kernels of all operators in pure torch: any device, any floating dtype."""
