// Run a Jenkinsfile whose steps are recorded, not executed; print the calls and how it ended as JSON.
// Arguments: the Jenkinsfile, and a JSON file: params, env, node_env (on the node), fail (step, or "build JOB" -> its error).
// A step with a block is two calls: STEP and "end STEP". Steps accept the keys of the real ones; any other key is an error.

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import org.codehaus.groovy.control.CompilerConfiguration

/** What Jenkins throws into a step if the build is aborted or reaches a time limit. */
class FlowInterruptedException extends InterruptedException {
    FlowInterruptedException(String message) {
        super(message)
    }
}

/** What string(...) returns in a pipeline: a description from which the step makes a parameter. */
class Described {
    final String symbol
    final Map arguments

    Described(String symbol, Map arguments) {
        this.symbol = symbol
        this.arguments = arguments
    }
}

abstract class Pipeline extends Script {
    static final Map KEYS = [
        build: ['job', 'parameters', 'propagate', 'quietPeriod', 'wait', 'waitForStart'],
        archiveArtifacts: ['artifacts', 'allowEmptyArchive', 'caseSensitive', 'defaultExcludes', 'excludes', 'fingerprint',
                           'followSymlinks', 'onlyIfSuccessful'],
        junit: ['testResults', 'allowEmptyResults', 'healthScaleFactor', 'keepLongStdio', 'skipPublishingChecks'],
        timeout: ['time', 'unit', 'activity'],
        sh: ['script', 'returnStatus', 'returnStdout', 'encoding', 'label'],
        string: ['name', 'value'],
    ]

    def node(String label, Closure body) {
        block('node', [label: label]) {
            env.putAll(harness.node_env)
            body()
        }
    }

    def timestamps(Closure body) {
        block('timestamps', [:], body)
    }

    def timeout(Map arguments, Closure body) {
        block('timeout', arguments, body)
    }

    def withEnv(List<String> variables, Closure body) {
        block('withEnv', [variables: variables.collect { it.toString() }], body)
    }

    def sh(String script) {
        sh(script: script)
    }

    def sh(Map arguments) {
        step('sh', arguments)
    }

    def archiveArtifacts(Map arguments) {
        step('archiveArtifacts', arguments)
    }

    def junit(Map arguments) {
        step('junit', arguments)
    }

    def build(Map arguments) {
        def parameters = arguments.parameters.collectEntries { Described one ->
            assert one.symbol == 'string' && one.arguments.value instanceof CharSequence: one.arguments
            [one.arguments.name, one.arguments.value.toString()]
        }
        step('build', arguments + [parameters: parameters], "build ${arguments.job}")
    }

    def string(Map arguments) {
        assert arguments.keySet() == ['name', 'value'] as Set
        return new Described('string', arguments)
    }

    def block(String name, Map arguments, Closure body) {
        step(name, arguments)
        try {
            return body()
        } finally {
            harness.calls << [step: "end $name".toString()]
        }
    }

    void step(String name, Map arguments, String failure = name) {
        def known = KEYS[name] ?: arguments.keySet()
        assert known.containsAll(arguments.keySet()): "$name: ${arguments.keySet() - known}"
        harness.calls << [step: name] + arguments
        def error = harness.fail[failure.toString()]
        if (error == 'aborted') {
            throw new FlowInterruptedException("$failure: aborted")
        } else if (error) {
            throw new IOException("$failure: $error")
        }
    }
}

/** currentBuild: the properties that a pipeline can set. */
class CurrentBuild {
    String displayName
    String description
    String result
}

def given = new JsonSlurper().parse(new File(args[1]), 'UTF-8')
def calls = []
def currentBuild = new CurrentBuild()
def binding = new Binding(
    params: given.params.asImmutable(), env: [:] + given.env, currentBuild: currentBuild,
    harness: [calls: calls, fail: given.fail, node_env: given.node_env])
def configuration = new CompilerConfiguration(scriptBaseClass: Pipeline.name)
def error = null
try {
    new GroovyShell(this.class.classLoader, binding, configuration).evaluate(new File(args[0]))
} catch (IOException | FlowInterruptedException err) {
    error = err.message
}
System.out.write(JsonOutput.toJson([calls: calls, error: error, displayName: currentBuild.displayName]).getBytes('UTF-8'))
System.out.flush()
