"""``hagmil bench``: measures the time of each step of a slide and renders a report.

machine           description of the machine, and memory of the process
repeats           warm-up, repeats, and the run with the median time
workload          the slide and the patches that are measured
measure           each step alone, the pipeline, and end to end
start_up, watched_infer
                  start-up time and memory of ``hagmil infer`` in separate processes
sweep             batch sizes and numbers of threads
run               runs all measurements
report            ``report.json``: models, schema, reading
figures           the report's numbers as a list, for tables and comparisons
charts, page, comparison
                  the HTML pages
"""
