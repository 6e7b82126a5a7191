export { defaultSshPort } from './defaults.ts'
export { type LoadedConfig, type LoadOptions, loadConfig } from './load.ts'
export { type Config, configLeaves, configSchema, isLoopback, logLevels } from './schema.ts'
export { type ConfigEntry, formatEntries, type Origin, redactUrls } from './show.ts'
