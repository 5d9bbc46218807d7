"""The commands of serve-llm, one file each; what they need is imported when they run."""
