"""The processes that do the work.

Workers run executions; control does everything periodic.
"""
