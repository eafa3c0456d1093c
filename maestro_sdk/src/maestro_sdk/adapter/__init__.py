"""For authors of adapters: implement `Provider.stream`; the kit derives the unary call, errors, health and cost."""
