"""From a recipe to what a trainer is made of, with most mistakes found before anything is loaded."""
