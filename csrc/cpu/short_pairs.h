// Packed bfloat16 pairs in 12 bits a value, without loss, for layers that read every weight once: memory is
// what they wait for. A bfloat16 value is a sign, 8 bits of exponent and 7 of mantissa, and weights of one
// layer share a few exponents: a code of 4 bits names one of the 16 most frequent ones of a panel.
// A block with a value of another exponent is stored as it is. (Cf. entropy coding of exponents for weights
// in GPU memory: Zhang et al., "70% Size, 100% Accuracy", arXiv:2504.11651.)
//
// The memory: an int64_t offset for every panel, whole lines of them; there, on a line of its own: the upper
// bytes of the 16 exponents, the lower ones, for every block of kPairBlock positions a byte that is not zero
// where it is stored as it is; from the next line on the blocks, one behind the other.
//
// A coded block is, half by half, four groups of 128 values, which are four vectors of 16 pairs: 64 bytes of
// codes, of the first 64 values in the lower halves, then sign and mantissa of these and of the others.
// Within 64 values byte 16 * i + j is value 8 * i + j of the first vector for j < 8, else 8 * i + j - 8 of
// the second.
#pragma once
#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"
#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

// pairs: as pack_pairs gives them, of one group.
AlignedFloats shorten_pairs(const ConvGeometry& g, const AlignedFloats& pairs);

// Whether a convolution of bfloat16 pairs keeps them so: many weights meet few pixels.
bool takes_short_pairs(const ConvGeometry& g);

}  // namespace cnnfast::cpu
