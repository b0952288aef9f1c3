"""LLMs asked through LiteLLM: agents, a client with cache, budget and pace, and the processes that LiteLLM runs in."""
