"""Any-precision networks: one set of kernels, a batch norm for each width (Yu et al. 2021)."""
