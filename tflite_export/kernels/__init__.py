"""Integer arithmetic of every operator that the writer writes, bit by bit that of LiteRT 2.3 on x86.

One file a family; `operators` names the kernel of each operator. `multipliers` holds the roundings, `call`
what a kernel is given, `proof.delegation` says which set of kernels (reference, xnnpack, builtin) runs an
operator in a mode, `proof.coverage` what is not simulated: uint8 inside of a network, computed shapes,
resizes without half-pixel centres, sums and products at absurd ratios of scales. The values of LOGISTIC and
TANH are read from the runtime (`proof.runtime_tables`): exact, but no second opinion on it. All else is
computed here.
"""
