"""The one list of supported operators: auto_LiRPA's class name of a traced operator -> its adapter.

An adapter takes the graph builder and the traced operator, emits nodes, and returns the name of the last one.
To support another operator write an adapter and add its row here (docs/extending.md).
"""

from __future__ import annotations

from lirpa_lip.network.adapters import (
    activations,
    affine,
    elementwise_affine,
    normalise,
    pairs,
    pooling,
    products,
    resampling,
    shape,
    softmax,
)

ADAPTERS = {
    # affine
    "BoundLinear": affine.linear,
    "BoundMatMul": products.matrix_product,
    "BoundConv": affine.convolution,
    "BoundConvTranspose": affine.convolution_transposed,
    "BoundBatchNormalization": affine.batch_norm,
    "BoundAdd": elementwise_affine.add,
    "BoundSub": elementwise_affine.subtract,
    "BoundNeg": elementwise_affine.negate,
    "BoundDiv": products.divide,
    "BoundMul": activations.gated,
    "BoundAveragePool": pooling.average_pool,
    "BoundGlobalAveragePool": pooling.global_average_pool,
    "BoundAdaptiveAveragePool": pooling.adaptive_average_pool,
    "BoundReduceMean": pooling.reduce_mean,
    "BoundReduceSum": pooling.reduce_sum,
    # values moved, not changed
    "BoundReshape": shape.reshape,
    "BoundFlatten": shape.reshape,
    "BoundSqueeze": shape.reshape,
    "BoundUnsqueeze": shape.reshape,
    "BoundTranspose": shape.transpose,
    "BoundSlice": shape.slice_,
    "BoundGather": shape.gather,
    "BoundExpand": shape.expand,
    "BoundSplit": shape.split,
    "BoundConcat": shape.concatenate,
    "BoundPad": shape.pad,
    "BoundResize": resampling.resize,
    "BoundUpsampleLinear": resampling.upsample("linear"),
    "BoundUpsampleBilinear": resampling.upsample("bilinear"),
    "BoundUpsampleTrilinear": resampling.upsample("trilinear"),
    "BoundUpsampleBicubic": resampling.upsample_bicubic,
    "BoundUpsampleBilinearSmoothed": resampling.smoothed("bilinear"),
    "BoundUpsampleBicubicSmoothed": resampling.smoothed("bicubic"),
    "BoundTile": shape.tile,
    "BoundCumSum": shape.cumulative_sum,
    "BoundChannelShuffle": shape.channel_shuffle,
    "BoundUnfold": shape.unfold,
    "BoundWhere": shape.choose,
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
    "BoundAtan": activations.ATAN,
    "BoundAsin": activations.ASIN,
    "BoundAcos": activations.ACOS,
    "BoundAsinh": activations.ASINH,
    "BoundAcosh": activations.ACOSH,
    "BoundAtanh": activations.ATANH,
    "BoundSin": activations.SIN,
    "BoundCos": activations.COS,
    "BoundTan": activations.TAN,
    "BoundSqrt": activations.SQRT,
    "BoundReciprocal": activations.RECIPROCAL,
    "BoundLog": activations.LOG,
    "BoundPow": activations.power,
    "BoundSqr": activations.SQUARE,
    "BoundExp": activations.EXP,
    "BoundElu": activations.elu,
    "BoundSelu": activations.SELU,
    "BoundHardSigmoid": activations.hard_sigmoid_,
    "BoundHardSwish": activations.HARD_SWISH,
    "BoundSoftplus": activations.SOFTPLUS,
    "BoundSiLU": activations.SILU,
    "BoundGelu": activations.GELU,
    "BoundClippedRelu": activations.clipped_relu,
    # norms
    "BoundReduceL2": normalise.euclidean_norm,
    "BoundInstanceNormalization": normalise.instance_norm,
    # log-sum-exp
    "BoundSoftmax": softmax.softmax,
    "BoundLogSoftmax": softmax.log_softmax,
    "BoundReduceLogSumExp": softmax.log_sum_exp,
    # sorting
    "BoundMaxMin": pairs.max_min,
    "BoundClippedMaxMin": pairs.clipped_max_min,
    "BoundMaxPool": pooling.max_pool,
    "BoundReduceMax": pooling.reduce_max,
    "BoundReduceMin": pooling.reduce_min,
    "BoundMax": pooling.maximum,
    "BoundMin": pooling.minimum,
}

#: Operators with lines for auto_LiRPA's methods, which have no Lipschitz constant.
RELAXED = {"BoundATenHeaviside": activations.heaviside}

_STEP = "it is a step function, which has no Lipschitz constant; leave it out of the model"

#: Operators which auto_LiRPA traces and which are refused on purpose, with the reason.
REFUSED = {
    "BoundFloor": _STEP,
    "BoundSign": _STEP,
    "BoundATenHeaviside": _STEP,
    "BoundEqual": _STEP,
}
