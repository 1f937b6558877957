"""What the components that wrap another program (postgres, objects, bus) share: settings, files, children.

Standard library only: it runs in a dyno before anything else does.
"""
