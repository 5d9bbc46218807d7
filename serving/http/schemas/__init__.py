"""What requests and answers look like, in OpenAI's API and its extensions."""
