"""The model as an ensemble of three: texts to ids, ids to ids, ids to texts."""
