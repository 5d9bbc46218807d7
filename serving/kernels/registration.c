#include "registration.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct Domains {
    const Api *api;
    OpDomain *made[MOST_DOMAINS];
    struct Domains *older;
} Domains;

static void release_domains(const Api *api, Domains *domains) {
    for (int i = 0; i < MOST_DOMAINS; i++)
        if (domains->made[i])
            release_domain(api)(domains->made[i]);
    free(domains);
}

static Status *find_domains(const Api *api, CreateDomains *create, OpDomain *const **domains) {
    static Domains *newest;
    for (const Domains *known = newest; known; known = known->older)
        if (known->api == api) {
            *domains = known->made;
            return NULL;
        }
    Domains *created = calloc(1, sizeof *created);
    if (!created)
        return create_status(api)(FAIL, "there is no memory for the kernels' operators");
    Status *status = create(api, created->made);
    if (status) {
        release_domains(api, created);
        return status;
    }
    created->api = api;
    created->older = newest;
    newest = created;
    *domains = created->made;
    return NULL;
}

Status *take_domains(const Api *api, CreateDomains *create, OpDomain *const **domains) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    Status *status = find_arena(api);
    if (!status)
        status = find_domains(api, create, domains);
    pthread_mutex_unlock(&lock);
    return status;
}
