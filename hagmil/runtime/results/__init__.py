"""Files of a result: result.json, results.csv, attention.h5, regions.geojson and heatmaps."""
