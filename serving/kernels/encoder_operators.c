/* The library of what encoders run beside the other: registering its operators with an ONNX Runtime
 * session. Graphs have functions of their names: without them, ONNX Runtime runs their bodies.
 */
#include "registration.h"

static Status *create(const Api *api, OpDomain *domains[MOST_DOMAINS]) {
    TRY(create_domain(api)("export_llm.encoders", &domains[0]));
    TRY(add_to_domain(api)(domains[0], encoder_attention));
    TRY(add_to_domain(api)(domains[0], packed_encoder_attention));
    return add_linear_operators(api, domains[0]);
}

/* What ONNX Runtime calls; the name is its own. */
EXPORTED Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    const Api *api = base->get_api(VERSION_WITH_PARALLEL_FOR);
    OpDomain *const *domains;
    TRY(take_domains(api, create, &domains));
    return add_domain(api)(options, domains[0]);
}
