"""scripts/batch_generate: from a file of prompts to a file of what was generated."""
