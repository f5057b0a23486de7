"""Routes: from the path of a component to the plugin that runs it. Pure.

- `table`: ordered rules with conditions, allow lists and deny lists.
- `patterns`: the path patterns of components.
- `stored`: rules in the store.
"""
