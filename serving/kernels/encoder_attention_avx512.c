/* The functions of encoders' attention for AVX-512. */
#include "begin_avx512.h"

#include "encoder_attention_rows.h"

const EncoderAttentionKernels encoder_attention_avx512 = ENCODER_ATTENTION;

#include "end_target.h"
