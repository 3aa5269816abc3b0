def load_plugins():
    return []
