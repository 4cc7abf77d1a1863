// Run a posted script as Jenkins' script console does (hudson.util.RemotingDiagnostics); prints its output, or a stack trace.
// Argument: the script's file. Property truth: a JSON file with what the stand-in for Jenkins knows; see console.py.

import org.codehaus.groovy.control.CompilerConfiguration
import org.codehaus.groovy.control.customizers.ImportCustomizer

def configuration = new CompilerConfiguration()
configuration.addCompilationCustomizers(
    new ImportCustomizer().addStarImports('jenkins', 'jenkins.model', 'hudson', 'hudson.model'))
def written = new StringWriter()
def out = new PrintWriter(written)
def shell = new GroovyShell(this.class.classLoader, new Binding(), configuration)
shell.setVariable('out', out)
try {
    def result = shell.evaluate(new File(args[0]).getText('UTF-8'))
    if (result != null) {
        out.println("Result: ${result}")
    }
} catch (Throwable err) {
    err.printStackTrace(out)
}
out.flush()
System.out.write(written.toString().getBytes('UTF-8'))
System.out.flush()
