"""Where the time goes: what ``hagmil bench`` measures and how it is shown.

report            report.json: its models, its schema, reading and writing it
machine           what the figures were taken on
repeats           warm-up, repeats, and the middle run
workload           the slide and the patches that are measured
measure           each step alone, the pipeline, and end to end
probe, start_up   a process of its own: from its start to the first patch in the backbone, and its memory
sweep             batch sizes and threads
run               all of it, put together
figures           the report's numbers as a list, for tables and comparisons
charts, html      the pictures and the pages
"""
