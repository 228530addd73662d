"""From the text of an answer to its tree: spellings unified, remarks set apart, tokens, a recursive-descent parser."""
