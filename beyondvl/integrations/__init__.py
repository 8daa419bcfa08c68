"""beyondvl inside what people already run; each module needs that library, and is imported by who has it."""
