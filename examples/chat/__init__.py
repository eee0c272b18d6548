"""A small character-level transformer: trained in a minute, deployed, asked as a chat model."""
