/* The library of what decoders run: registering its operators with an ONNX Runtime session.
 *
 * ONNX Runtime takes a registered kernel before its own of the same name and domain: graphs are the
 * same with and without this library.
 */
#include "registration.h"

enum { OWN = 4 }; /* of the domains; before it are those that stand in for ONNX Runtime's */

/* The name of the instruction set in use, or NULL where the kernels have none for this processor.
 */
EXPORTED const char *instruction_set(void) {
    static const char *const names[] = {[NONE] = NULL, [AVX2] = "AVX2", [AVX512] = "AVX-512 VNNI"};
    return names[instruction_set_in_use()];
}

/* A registered operator hides ONNX Runtime's for other types. */
static Status *create_standing_in(const Api *api, bool is_float32, bool has_float32_cache,
                                  OpDomain **domain) {
    TRY(create_domain(api)("com.microsoft", domain));
    TRY(add_to_domain(api)(*domain, &float_matmul_n_bits));
    TRY(add_to_domain(api)(*domain, &half_matmul_n_bits));
    if (is_float32) {
        TRY(add_to_domain(api)(*domain, &fused_matmul));
        TRY(add_to_domain(api)(*domain, fast_gelu));
    }
    return has_float32_cache ? add_to_domain(api)(*domain, &group_query_attention) : NULL;
}

static int standing_in(bool is_float32, bool has_float32_cache) {
    return 2 * is_float32 + has_float32_cache;
}

static Status *create(const Api *api, OpDomain *domains[MOST_DOMAINS]) {
    for (int i = 0; i < 4; i++)
        TRY(create_standing_in(api, i / 2, i % 2, &domains[standing_in(i / 2, i % 2)]));
    /* Graphs have functions of these names: without the kernels, ONNX Runtime runs their bodies. */
    TRY(create_domain(api)("export_llm", &domains[OWN]));
    TRY(add_to_domain(api)(domains[OWN], ge_glu));
    return add_to_domain(api)(domains[OWN], swi_glu);
}

/* What ONNX Runtime calls; the name is its own. */
EXPORTED Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    const Api *api = base->get_api(VERSION_WITH_PARALLEL_FOR);
    OpDomain *const *domains;
    int is_float32 = 0, has_float32_cache = 0;
    TRY(take_domains(api, create, &domains));
    TRY(has_entry(api)(options, "export_llm.float32", &is_float32));
    TRY(has_entry(api)(options, "export_llm.float32_cache", &has_float32_cache));
    TRY(add_domain(api)(options, domains[standing_in(is_float32, has_float32_cache)]));
    return add_domain(api)(options, domains[OWN]);
}
