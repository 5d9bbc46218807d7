/* An open bundle: its manifest and its engine, which sessions share. */
#pragma once

#include "engine.h"

struct llm_model {
    Memory memory; /* holds this too */
    Manifest manifest;
    Engine engine;
};
