# The first base of every config here. It imports mmvim while the config is read, because only with
# mmvim's repairs are `mmseg::…` bases found in every stack, under the libraries' own tools too. A
# statement `import mmvim` would make it another kind of config.
__import__('mmvim')
