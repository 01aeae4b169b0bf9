"""The live page: a static page that reads a store in the browser, from where the store lies.

making             the page's files, for a folder or for the store itself
index.html         the page, with what it may do: run its own modules, ask the store
page.js            choosing two models, and what is said of them, by the report's explorer
models.js          what the explorer takes, from arrays of the store
reader.js          snapshots, rows and results of a store
rows.js            rows as a recipe has them; KL is computed by the report's own divergence.js
contents.js        the texts themselves, where they are published
zarrita.js         zarrita and fzstd, one file made of npm's packages: cd build && npm ci && npm run build
"""
