"""Where recordings come from: one module a layout, each answering with candidates that ``prepare`` then checks."""
