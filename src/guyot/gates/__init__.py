"""0/1 gates on units and layers: where they multiply, and how many they are."""
