"""AlpacaEval, MT-Bench, IFEval, probes and lm-eval: answers by the variants, verdicts on them."""
