/* Registering a library's operators with ONNX Runtime's sessions. */
#pragma once

#include "operators.h"

#define EXPORTED __attribute__((visibility("default")))

enum { MOST_DOMAINS = 5 };

/* Makes a library's domains: as many as it has, the others stay NULL. */
typedef Status *CreateDomains(const Api *api, OpDomain *domains[MOST_DOMAINS]);

/* A library's domains for this ONNX Runtime, made by the first who asks. Options of sessions keep
 * the domains that are added to them, and nothing tells when they go: each ONNX Runtime in the
 * process has one set of them for good. */
Status *take_domains(const Api *api, CreateDomains *create, OpDomain *const **domains);
