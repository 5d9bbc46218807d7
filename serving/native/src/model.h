/* An open bundle: its manifest, its engine and its tokenizer, which sessions share. */
#pragma once

#include "engine.h"
#include "tokenizer.h"

struct llm_model {
    Memory memory; /* holds this too */
    Manifest manifest;
    Engine engine;
    const Tokenizer *tokenizer; /* NULL: the bundle has none that this library runs, */
    llm_error no_tokenizer;     /* for this reason */
};

/* The model's tokenizer, or why there is none. */
llm_status model_tokenizer(const llm_model *model, const Tokenizer **tokenizer, llm_error *error);
