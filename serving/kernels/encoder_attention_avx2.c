/* The functions of encoders' attention for AVX2. */
#include "begin_avx2.h"

#include "encoder_attention_rows.h"

const EncoderAttentionKernels encoder_attention_avx2 = ENCODER_ATTENTION;

#include "end_target.h"
