"""The one list of supported operators: auto_LiRPA's class name of a traced operator -> its adapter.

An adapter takes the graph builder and the traced operator, emits nodes, and returns the name of the last one.
To support another operator write an adapter and add its row here (docs/extending.md).
"""

from __future__ import annotations

from . import activations, affine, elementwise_affine, pairs, pooling, shape

ADAPTERS = {
    # affine
    "BoundLinear": affine.linear,
    "BoundMatMul": affine.matmul,
    "BoundConv": affine.convolution,
    "BoundConvTranspose": affine.convolution_transposed,
    "BoundBatchNormalization": affine.batch_norm,
    "BoundAdd": elementwise_affine.add,
    "BoundSub": elementwise_affine.subtract,
    "BoundNeg": elementwise_affine.negate,
    "BoundDiv": elementwise_affine.divide,
    "BoundMul": activations.gated,
    "BoundAveragePool": pooling.average_pool,
    "BoundGlobalAveragePool": pooling.global_average_pool,
    "BoundReduceMean": pooling.reduce_mean,
    "BoundReduceSum": pooling.reduce_sum,
    # values moved, not changed
    "BoundReshape": shape.reshape,
    "BoundFlatten": shape.reshape,
    "BoundSqueeze": shape.reshape,
    "BoundUnsqueeze": shape.reshape,
    "BoundTranspose": shape.transpose,
    "BoundSlice": shape.slice_,
    "BoundSplit": shape.split,
    "BoundConcat": shape.concatenate,
    "BoundPad": shape.pad,
    "BoundResize": shape.resize,
    "BoundDropout": shape.identity,
    "BoundIdentity": shape.identity,
    "BoundCast": shape.identity,
    # activations
    "BoundRelu": activations.RELU,
    "BoundLeakyRelu": activations.leaky,
    "BoundPRelu": activations.prelu,
    "BoundAbs": activations.ABS,
    "BoundHardTanh": activations.clipped,
    "BoundClip": activations.clipped,
    "BoundSigmoid": activations.SIGMOID,
    "BoundTanh": activations.TANH,
    "BoundErf": activations.ERF,
    "BoundExp": activations.EXP,
    "BoundElu": activations.elu,
    "BoundSoftplus": activations.SOFTPLUS,
    "BoundSiLU": activations.SILU,
    "BoundGelu": activations.GELU,
    "BoundClippedRelu": activations.clipped_relu,
    # sorting
    "BoundMaxMin": pairs.max_min,
    "BoundClippedMaxMin": pairs.clipped_max_min,
    "BoundMaxPool": pooling.max_pool,
    "BoundReduceMax": pooling.reduce_max,
}
